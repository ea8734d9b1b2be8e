// SPDX-License-Identifier: Apache-2.0
// Eager clients whose functions run after the assignments that were made before them.
#pragma once

#include <memory>

#include "tensorflow/core/distributed_runtime/eager/eager_client.h"

namespace arcflow::tf {

/// `inner` with clients that hold functions back until what was written before them has run: a part
/// of a function waits for what was written to its own task through any client of this cache; a
/// function that is handed whole to a task, for variables and tables of all others, which its parts
/// may use. An error of such a write is the function's, or of whatever uses the stream before, as
/// with TensorFlow's own clients.
///
/// A server queues the operations of a driver's stream and answers those without results, an
/// assignment above all, at once; the parts of functions come by calls of their own, which run
/// beside that queue. So with TensorFlow's own clients a function may read a variable as it was, or
/// without a value at all.
/// Source: tensorflow/core/distributed_runtime/eager/eager_service_impl.cc, Enqueue and
/// RunComponentFunction.
///
/// Not covered: functions without results that run whole on another task, and what waits for others
/// by its nature (queues, barriers). Threads: as for the clients of `inner`; a function that is to
/// run whole on another task blocks the caller meanwhile. A task that cannot be reached holds
/// nobody up longer than its connection, and is no error for functions that do not need it.
std::unique_ptr<tensorflow::eager::EagerClientCache> NewOrderedClients(
    std::unique_ptr<tensorflow::eager::EagerClientCache> inner);

}  // namespace arcflow::tf
