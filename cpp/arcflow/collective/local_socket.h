// SPDX-License-Identifier: Apache-2.0
// Sockets of the hub: abstract names, same user, handshake over packets.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::collective {

/// A listening SEQPACKET socket with a random name in the abstract namespace.
Result<Fd> ListenAbstract(std::string* name);
/// Connects to such a name. Unavailable when nobody listens there.
Result<Fd> ConnectAbstract(const std::string& name, Deadline deadline);

/// The process at the other end, 0 when it is in another pid namespace. Unauthenticated when
/// it is another user's.
Result<pid_t> PeerOf(const Fd& socket);

/// Both ends prove the secret (net/handshake.h), one packet for each step.
Status ProveAsServer(const Fd& socket, const std::string& secret, Deadline deadline);
Status ProveAsClient(const Fd& socket, const std::string& secret, Deadline deadline);

/// `n` random bytes in hexadecimal.
Result<std::string> RandomName(std::size_t n);

}  // namespace arcflow::collective
