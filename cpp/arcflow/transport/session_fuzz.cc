// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a peer that proved the secret and then says anything. Its frames reach a session
// that has one region and operations of its own; no byte outside the region may change.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "arcflow/transport/session.h"

namespace {

using namespace arcflow::transport;  // NOLINT(google-build-using-namespace): a test's only file
using arcflow::Status;

constexpr std::size_t kRegionBytes = 4096;
constexpr std::size_t kGuardBytes = 4096;

/// Swallows what the session sends.
class DeafLink final : public Link {
 public:
  void SendFrame(const FrameHeader&, std::string_view, std::string_view) override {}
  void SendPayload(std::shared_ptr<Outgoing> outgoing) override { last = std::move(outgoing); }
  std::size_t queued_bytes() const override { return 0; }
  void Shutdown(bool) override {}
  std::string detail() const override { return "deaf"; }
  std::shared_ptr<Outgoing> last;
};

/// One for the process: its thread is not what is fuzzed.
std::shared_ptr<Core> TheCore() {
  static const std::shared_ptr<Core> core = [] {
    auto made = std::make_shared<Core>();
    auto reactor = Reactor::Start("fuzz");
    if (!reactor.ok()) std::abort();
    made->reactors.push_back(std::move(*reactor));
    made->regions = std::make_shared<RegionTable>(made->id, &made->counters);
    return made;
  }();
  return core;
}

/// Takes a piece as a link would.
void Piece(Session& session, const FrameHeader& header) {
  const Place place = session.BeginPiece(header);
  bool placed = false;
  {
    GatePass pass(place.gate);
    placed = static_cast<bool>(pass);
    const bool by_reference =
        header.type == FrameType::kPutRef || header.type == FrameType::kGetRef;
    if (placed) std::memset(place.to, 0x5A, by_reference ? header.total : header.payload_bytes);
  }
  session.EndPiece(header, placed ? Status::Ok() : Session::Revoked());
}

}  // namespace

// Each frame: a header, then its inline bytes. Key 0 stands for the region's, op numbers are small.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto core = TheCore();
  std::vector<std::byte> memory(kRegionBytes + 2 * kGuardBytes, std::byte{0xEE});
  auto region = core->regions->Add({memory.data() + kGuardBytes, kRegionBytes}, Access::kReadWrite);
  if (!region.ok()) return 0;
  NodeId peer;
  peer.bytes[0] = 1;
  auto session = std::make_shared<Session>(core, BackendKind::kTcp, peer);
  const auto link = std::make_shared<DeafLink>();
  session->Start(link);
  RemoteRegion theirs;
  theirs.owner = peer;
  theirs.key = 1;
  theirs.size_bytes = 1 << 20;
  std::vector<std::byte> into(100'000, std::byte{0});
  std::vector<std::byte> from(100'000);
  int ended = 0;
  session->Get(into, theirs, 0, arcflow::Deadline::Infinite(), [&](const Status&) { ++ended; });
  session->Get({into.data(), 100}, theirs, 0, arcflow::Deadline::Infinite(),
               [&](const Status&) { ++ended; });
  session->Put(from, theirs, 0, PutOptions(), [&](const Status&) { ++ended; });
  session->Flush(arcflow::Deadline::Infinite(), [&](const Status&) { ++ended; });
  while (size >= sizeof(FrameHeader)) {
    auto header = DecodeHeader({reinterpret_cast<const std::byte*>(data), size});
    if (!header.ok() || size < sizeof(FrameHeader) + header->inline_bytes) break;
    const std::string_view body(reinterpret_cast<const char*>(data) + sizeof(FrameHeader),
                                header->inline_bytes);
    data += sizeof(FrameHeader) + header->inline_bytes;
    size -= sizeof(FrameHeader) + header->inline_bytes;
    if (header->key == 0) header->key = region->remote().key;
    if (header->payload_bytes > 0 ||
        ((header->type == FrameType::kPutRef || header->type == FrameType::kGetRef) &&
         header->total > 0)) {
      Piece(*session, *header);
    } else if (!session->OnFrame(*header, body).ok()) {
      break;
    }
    if (link->last != nullptr) session->OnSent(std::exchange(link->last, nullptr));
  }
  session->Close();
  if (ended != 4) std::abort();  // each operation exactly once
  region->Deregister();
  for (std::size_t i = 0; i < kGuardBytes; ++i) {
    if (memory[i] != std::byte{0xEE} || memory[memory.size() - 1 - i] != std::byte{0xEE}) {
      std::abort();
    }
  }
  return 0;
}
