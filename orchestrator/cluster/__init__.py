"""All that touches Ray: launching, the local cluster, the submit hook."""
