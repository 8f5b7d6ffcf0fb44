"""The report of a run: curves, tables, pictures, and the page that holds them."""
