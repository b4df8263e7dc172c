"""The arena: blind battles between two models, the votes about them, and the ratings that come of them."""
