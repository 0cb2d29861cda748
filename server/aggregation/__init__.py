"""What a round's updates become: averaging rules over updates and their supports. Pure functions; imports nothing else of the server.

`average.mean_update` is the one way in. A rule is a file with a class that has a formula and its source (`rule.Rule`), and a line in
`config.RULES`, or a function or class of another package; docs/extending.md shows how to add one.
"""
