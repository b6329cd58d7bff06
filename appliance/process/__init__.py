"""Parts of processes that read from the network: sandbox, merged memory, passed log lines."""
