// SPDX-License-Identifier: Apache-2.0
// The processor cores that this process may run on.
#pragma once

namespace arcflow {

/// By the affinity mask, so what a container or taskset leaves; at least 1. Threads: any.
int UsableCores();

}  // namespace arcflow
