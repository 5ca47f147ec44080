"""Warming on a Ray cluster, or with several engines of one machine."""

from embcache.cluster.warmer import ClusterStats, ClusterWarmer, ReplicaStats

__all__ = ["ClusterStats", "ClusterWarmer", "ReplicaStats"]
