// SPDX-License-Identifier: Apache-2.0
// TlsSession: TLS 1.3 between two ends that share a key, without certificates and without sockets.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow::net {

/// One end of a TLS 1.3 connection whose only credential is an external pre-shared key (RFC 8446,
/// section 4.2.11, always with an ephemeral Diffie-Hellman exchange: who learns the key later can
/// not read what was recorded). Sans-IO: the owner moves the bytes. The key comes from
/// Handshake::DeriveKey, so the two handshakes are bound to one another.
/// Threads: one at a time. Never blocks. Memory: OpenSSL's buffers are released while idle.
class TlsSession {
 public:
  static constexpr std::size_t kKeyBytes = 32;

  /// The client's hello is then in TakeOutput(). Errors: InvalidArgument for a key of another size,
  /// Internal when the library lacks TLS 1.3.
  static Result<TlsSession> Client(std::string_view key);
  static Result<TlsSession> Server(std::string_view key);
  TlsSession(TlsSession&&) noexcept;
  TlsSession& operator=(TlsSession&&) noexcept;
  ~TlsSession();  // wipes the key

  /// Takes bytes of the peer and appends what they decrypt to. Unauthenticated when the peer has
  /// another key, DataLoss for bytes that are not its own; the session is then over.
  Status Feed(std::span<const std::byte> bytes, std::string* plain);
  /// Bytes to send now, in order with those of Encrypt.
  std::string TakeOutput();
  /// The bytes that carry `plain`. FailedPrecondition before done().
  Result<std::string> Encrypt(std::string_view plain);
  /// Both ends have proved the key.
  bool done() const;

 private:
  struct Impl;
  explicit TlsSession(std::unique_ptr<Impl> impl);
  static Result<TlsSession> Make(bool server, std::string_view key);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::net
