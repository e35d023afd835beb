"""The first intermediate representation, a network as a DAG, and the passes over it."""
