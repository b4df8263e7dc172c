"""Training: build a LLaVA from a vision tower and a language model, align its projector, tune it to instructions."""
