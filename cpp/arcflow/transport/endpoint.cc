// SPDX-License-Identifier: Apache-2.0
// The blocking forms of an endpoint's operations.
#include "arcflow/transport/endpoint.h"

#include <future>

#include "arcflow/transport/reactor.h"

namespace arcflow::transport {
namespace {

template <typename Start>
Status Await(Start start) {
  if (Reactor::OnTransportThread()) {
    return FailedPrecondition("a callback of the transport must not wait for the transport");
  }
  auto promise = std::make_shared<std::promise<Status>>();
  auto future = promise->get_future();
  start([promise](Status status) { promise->set_value(std::move(status)); });
  return future.get();
}

}  // namespace

Status Endpoint::PutAndWait(std::span<const std::byte> from, const RemoteRegion& to,
                            std::uint64_t offset_bytes, const PutOptions& options) {
  return Await([&](Done done) { Put(from, to, offset_bytes, options, std::move(done)); });
}

Status Endpoint::GetAndWait(std::span<std::byte> into, const RemoteRegion& from,
                            std::uint64_t offset_bytes, Deadline deadline) {
  return Await([&](Done done) { Get(into, from, offset_bytes, deadline, std::move(done)); });
}

Status Endpoint::FlushAndWait(Deadline deadline) {
  return Await([&](Done done) { Flush(deadline, std::move(done)); });
}

}  // namespace arcflow::transport
