"""What the server and the GPU say meanwhile, in a process of its own."""
