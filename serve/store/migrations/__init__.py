"""How the tables came to be, step by step; a database is brought up to date when it is opened."""
