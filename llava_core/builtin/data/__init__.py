"""Pictures with exact answers: drawn scenes, words, charts, icons, photographs, and what can be asked of them."""
