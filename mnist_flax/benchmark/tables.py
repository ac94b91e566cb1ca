"""Tables of the benchmarks."""


def markdown(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table; the first row is its head, the first column holds names."""
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * len(head[1:]), *body)]
