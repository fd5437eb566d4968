"""What one user does: one streaming request becomes one RequestRecord."""
