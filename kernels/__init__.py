"""The operations of a training step that Triton computes: one kernel family a file, each beside its reference.

input_gradient   dJ/dx -> Delta of the paper, or a fast-gradient perturbation
perturbation     x' = x + p and its power, and the generator's signal of (9)
dual_loss        cross entropy per sample, F(x)_y, and the dual loss (10)
projected_step   dJ/dx -> the next perturbation in the L-inf ball

in place of a library's kernels, where `--convolutions` asks for them:

convolution_relu a convolution, its bias and a ReLU
relu_gradient    a ReLU's mask, and the gradient of the bias before it

and before the step:

image_batch      samples of a data set of bytes -> augmented images in [0, 1]

images says how a kernel works through an image, backend chooses kernel or reference.
"""
