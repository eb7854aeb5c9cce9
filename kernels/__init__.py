"""The joints of the training step: one family of operations a file, each beside its reference.

input_gradient   per-sample loss gradients -> Delta of the paper, or a fast-gradient perturbation
perturbation     x + p, its pixel bounds and its power
dual_loss        cross entropy per sample, F(x)_y, and the dual loss (10)

and what feeds it:

image_batch      samples of a data set of bytes -> augmented images in [0, 1]

images says how a kernel walks over an image, backend which of kernel and reference runs, offline compiles them all.
"""
