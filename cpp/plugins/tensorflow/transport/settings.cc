// SPDX-License-Identifier: Apache-2.0
// Settings of the process, and the C functions that Python calls.
#include "plugins/tensorflow/transport/settings.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "arcflow/base/hex.h"
#include "arcflow/net/handshake.h"
#include "plugins/tensorflow/transport/stats.h"

namespace arcflow::tf {
namespace {

std::mutex g_mutex;
std::optional<Settings> g_settings;  // guarded by g_mutex

}  // namespace

void Configure(Settings settings) {
  const std::lock_guard lock(g_mutex);
  g_settings = std::move(settings);
}

Result<Settings> CurrentSettings() {
  const std::lock_guard lock(g_mutex);
  if (g_settings) return *g_settings;
  return FailedPrecondition(
      "this process knows no run secret: use ctx.strategy(), or call "
      "arcflow.tf.transport.configure "
      "before TensorFlow starts its server");
}

Result<Settings> ParseSettings(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return InvalidArgument("transport settings are not a JSON object");
  Settings settings;
  try {
    settings.mode = json.value("mode", settings.mode);
    settings.run_id = json.value("run_id", "");
    settings.compression = json.value("compression", "");
    settings.rdma_backend = json.value("rdma_backend", settings.rdma_backend);
    const auto ports = json.value("ports", std::array<int, 2>{0, 0});
    settings.first_port = ports[0];
    settings.last_port = ports[1];
    const auto secret = FromHex(json.value("secret", ""));
    if (!secret.ok() || secret->size() < net::Handshake::kMinSecretBytes) {
      return InvalidArgument("secret must be hexadecimal, at least 32 digits");
    }
    settings.secret = *secret;
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument(std::string("transport settings: ") + error.what());
  }
  if (settings.compression != "" && settings.compression != "fp16" &&
      settings.compression != "bf16") {
    return InvalidArgument("compression='" + settings.compression + "' is not bf16 or fp16");
  }
  if (settings.rdma_backend != "rdma" && settings.rdma_backend != "ucx") {
    return InvalidArgument("rdma_backend='" + settings.rdma_backend + "' is not rdma or ucx");
  }
  constexpr std::array<std::string_view, 5> kModes = {"auto", "shm", "tcp", "rdma", "grpc"};
  if (std::find(kModes.begin(), kModes.end(), settings.mode) == kModes.end()) {
    return InvalidArgument("transport='" + settings.mode + "' is not auto, shm, tcp, rdma or grpc");
  }
  return settings;
}

}  // namespace arcflow::tf

// ---- what Python calls through ctypes ----

namespace {

/// Copies as much of `text` as fits, with a zero; returns the size that it needs.
std::size_t CopyOut(std::string_view text, char* out, std::size_t size) {
  if (size > 0) {
    const std::size_t n = std::min(text.size(), size - 1);
    std::memcpy(out, text.data(), n);
    out[n] = '\0';
  }
  return text.size() + 1;
}

}  // namespace

extern "C" {

/// 0, or a code with its message in `error`.
[[gnu::visibility("default")]] int arcflow_transport_configure(const char* json, char* error,
                                                               std::size_t size) {
  auto settings = arcflow::tf::ParseSettings(json);
  if (!settings.ok()) {
    CopyOut(settings.status().message(), error, size);
    return static_cast<int>(settings.status().code());
  }
  arcflow::tf::Configure(*std::move(settings));
  return 0;
}

/// Writes the counters of this process as JSON; returns the bytes that it needs.
[[gnu::visibility("default")]] std::size_t arcflow_transport_stats(char* out, std::size_t size) {
  return CopyOut(arcflow::tf::StatsJson(), out, size);
}
}
