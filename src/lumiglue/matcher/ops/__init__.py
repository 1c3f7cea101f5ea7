"""Operations of a layer: attention, the compiled kernel."""
