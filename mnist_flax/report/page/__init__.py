"""Writes the report of a run or a study: one HTML file that needs no network and no server.

Python chooses what goes into the page and how much of it fits (`content`, `digits`, `network`), and
`render` fills a template with it. The interactive parts are plain JavaScript: `network.js` runs the
trained network, `pad.js` is the drawing pad, `chart.js` draws the curves and `digits.js` the digits
with their bars; `elements.js` holds what they share, and `page.js` connects them. In the page of a
study, whose content comes from `study.page`, `study.js` does so. The scripts are copied into the
file unchanged, so that a double click opens it anywhere.
"""
