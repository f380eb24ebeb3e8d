"""WaffleIron (Puy et al., ICCV 2023), the backbone of ScaLR."""
