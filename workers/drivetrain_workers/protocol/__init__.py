"""What agents, fork servers, ranks and the control plane say to each other."""
