#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Job for the guest: TensorFlow with grpc_rdma over verbs gives what its gRPC gave outside. usage: tensorflow.sh <python> <reference file>
set -uo pipefail
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
exec "$1" python/tests/tf/rdma_in_guest.py check "$2"
