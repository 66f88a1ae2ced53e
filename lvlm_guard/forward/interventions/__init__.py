"""Work inside the layers of a forward: attention, hidden states, readouts and the vision tower."""
