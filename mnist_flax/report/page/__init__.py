"""The report of a run or a study: one HTML file that needs no network and no server.

Python chooses what the page holds and how much of it fits (`content`, `digits`, `network`), and
`render` fills a template with it. What a person can touch is plain JavaScript: `network.js` is the
trained network, `pad.js` the pad to draw on, `chart.js` the curves, `digits.js` the digits with
their bars, `elements.js` what they share, and `page.js` joins them. The page of a study, whose
content `study.page` chooses, has `study.js` instead. They are read as they are and put into the
file, so that a double click opens it anywhere.
"""
