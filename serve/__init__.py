"""Controller, workers, gateway, page and command line around the engines of `llava_core`."""
