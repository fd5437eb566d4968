"""Workers on other machines: their clocks are compared with the master's, their rows sent to it."""
