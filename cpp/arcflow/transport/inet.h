// SPDX-License-Identifier: Apache-2.0
// Internet sockets for the backends that meet over TCP. Internal to this layer.
#pragma once

#include <string>
#include <string_view>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::transport {

/// A listening socket on the first free port from `first` to `last` of `host`, on any free one when
/// they are 0; `*where` is "address:port", numeric. May block while a name is resolved.
/// InvalidArgument when it does not resolve; Unavailable when no port is free.
Result<Fd> ListenTcp(const std::string& host, int first, int last, std::string* where);
/// Connects to what ListenTcp() named. Blocks. InvalidArgument for anything but a numeric address
/// and a port; Unavailable when nobody listens.
Result<Fd> DialTcp(std::string_view where, Deadline deadline);
Status SetNoDelay(int socket);
/// "address:port" of the other side, "" if there is none.
std::string PeerOf(int socket);

}  // namespace arcflow::transport
