#!/usr/bin/env bash
# install_nvcc.sh [VERSION]: nvcc and the CUDA runtime in /opt/nvcc, in a manylinux_2_28 container. VERSION is 12.8 or
# 13.0, say; nothing is done without one. Used by cibuildwheel (pyproject.toml).
set -euo pipefail
version=${1:-}
[ -n "$version" ] || exit 0
case $version in
12.*)  # NVIDIA's packages on PyPI have no nvcc before 13
    [ "$(uname -m)" = x86_64 ] || { echo "CUDA $version: kernels are built for x86_64 only"; exit 1; }
    curl -fsSL https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo \
        -o /etc/yum.repos.d/cuda.repo
    dnf install -y "cuda-nvcc-${version/./-}" "cuda-cudart-devel-${version/./-}"
    ln -sfn "/usr/local/cuda-$version" /opt/nvcc
    ;;
*)
    /opt/python/cp311-cp311/bin/python -m pip install --target /opt/nvcc-packages \
        "cuda-toolkit[cccl,crt,cudart,nvcc,nvvm]==$version.*"
    ln -sfn "/opt/nvcc-packages/nvidia/cu${version%%.*}" /opt/nvcc
    # Names by which nvcc and CMake look for the runtime.
    ln -sfn lib /opt/nvcc/lib64
    ln -sfn "libcudart.so.${version%%.*}" /opt/nvcc/lib/libcudart.so
    ;;
esac
/opt/nvcc/bin/nvcc --version
