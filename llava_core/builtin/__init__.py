"""The built-in model: a small LLaVA put together on this machine from parts that come inside packages."""
