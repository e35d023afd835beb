"""The optimiser of SPEC §7: its phases as instructions, its settings, and the trainer that runs them."""
