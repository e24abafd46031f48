"""How updates are carried out: number formats, streams, graphs, processes, optimizers."""
