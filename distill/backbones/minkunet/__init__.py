"""MinkUNet (Choy et al., CVPR 2019) as SLidR has it: Res16UNet34C, a U-Net of sparse convolutions over voxels."""
