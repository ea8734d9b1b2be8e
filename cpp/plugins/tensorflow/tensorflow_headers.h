// SPDX-License-Identifier: Apache-2.0
// What every unit of the plug-in includes of TensorFlow: precompiled, because it takes most of a
// unit's time.
#pragma once

#include "tensorflow/core/data/dataset_utils.h"
#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/dataset.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"
