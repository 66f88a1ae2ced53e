"""A back end of Triton for a machine without a GPU, whose kernels run in Triton's interpreter (`TRITON_INTERPRET=1`)."""
