"""What a run's report is made of: curves, tables, pictures, and the page that holds them."""
