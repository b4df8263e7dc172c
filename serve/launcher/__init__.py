"""What `serve.launch` is made of: options, a plan of processes, a supervisor that keeps them running, a console."""
