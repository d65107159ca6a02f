"""Networks: tensors to tensors, in voxels of the lattice they are given; ``heads`` turns what they say into transforms in mm."""
