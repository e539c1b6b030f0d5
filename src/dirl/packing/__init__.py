"""Packing: trajectories and conversations become pieces, pieces are split and bin-packed, bins become flat rows."""
