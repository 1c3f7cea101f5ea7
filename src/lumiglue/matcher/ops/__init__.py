"""Operations of a layer: attention, the kernels."""
