// SPDX-License-Identifier: Apache-2.0
// OpenSSL over memory, with an external pre-shared key on both sides.
#include "arcflow/net/tls_session.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace arcflow::net {
namespace {

constexpr char kSuites[] = "TLS_AES_128_GCM_SHA256";
constexpr unsigned char kSuiteId[] = {0x13, 0x01};
constexpr unsigned char kIdentity[] = "arcflow";
constexpr std::size_t kIdentityBytes = sizeof kIdentity - 1;
constexpr std::size_t kChunk = std::size_t{16} << 10;

using Key = std::array<unsigned char, TlsSession::kKeyBytes>;

std::string LastError() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  char text[256];
  ERR_error_string_n(code, text, sizeof text);
  return code == 0 ? "no details" : text;
}

/// A session that says: this key, this suite, TLS 1.3. Null when the library refuses.
SSL_SESSION* SessionOf(SSL* ssl) {
  const auto* key = static_cast<const Key*>(SSL_get_app_data(ssl));
  const SSL_CIPHER* suite = SSL_CIPHER_find(ssl, kSuiteId);
  SSL_SESSION* session = SSL_SESSION_new();
  if (key != nullptr && suite != nullptr && session != nullptr &&
      SSL_SESSION_set1_master_key(session, key->data(), key->size()) == 1 &&
      SSL_SESSION_set_cipher(session, suite) == 1 &&
      SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1) {
    return session;
  }
  SSL_SESSION_free(session);
  return nullptr;
}

int FindSession(SSL* ssl, const unsigned char* identity, std::size_t size, SSL_SESSION** session) {
  *session = nullptr;  // an unknown name: the handshake then fails, as there is no certificate
  if (size == kIdentityBytes && std::memcmp(identity, kIdentity, size) == 0) {
    *session = SessionOf(ssl);
    return *session != nullptr ? 1 : 0;
  }
  return 1;
}

int UseSession(SSL* ssl, const EVP_MD* digest, const unsigned char** identity, std::size_t* size,
               SSL_SESSION** session) {
  *session = nullptr;
  const SSL_CIPHER* suite = SSL_CIPHER_find(ssl, kSuiteId);
  if (digest != nullptr && (suite == nullptr || SSL_CIPHER_get_handshake_digest(suite) != digest)) {
    return 1;
  }
  *session = SessionOf(ssl);
  *identity = kIdentity;
  *size = kIdentityBytes;
  return *session != nullptr ? 1 : 0;
}

SSL_CTX* MakeContext(bool server) {
  SSL_CTX* context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
  if (context == nullptr) return nullptr;
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_ciphersuites(context, kSuites);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  // PSK alone would be enough to prove the key; with (EC)DHE old recordings stay closed.
  SSL_CTX_clear_options(context, SSL_OP_ALLOW_NO_DHE_KEX);
  if (server) {
    SSL_CTX_set_psk_find_session_callback(context, &FindSession);
  } else {
    SSL_CTX_set_psk_use_session_callback(context, &UseSession);
  }
  return context;
}

/// Kept for the life of the process: a context is dear, a connection is cheap.
SSL_CTX* Context(bool server) {
  static SSL_CTX* const contexts[] = {MakeContext(false), MakeContext(true)};
  return contexts[server ? 1 : 0];
}

}  // namespace

struct TlsSession::Impl {
  Key key{};
  SSL* ssl = nullptr;
  BIO* in = nullptr;   // owned by ssl
  BIO* out = nullptr;  // likewise
  bool failed = false;

  ~Impl() {
    SSL_free(ssl);
    OPENSSL_cleanse(key.data(), key.size());
  }
  Status Advance();
  Status ReadPlain(std::string* plain);
};

TlsSession::TlsSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TlsSession::TlsSession(TlsSession&&) noexcept = default;
TlsSession& TlsSession::operator=(TlsSession&&) noexcept = default;
TlsSession::~TlsSession() = default;

Result<TlsSession> TlsSession::Client(std::string_view key) { return Make(false, key); }
Result<TlsSession> TlsSession::Server(std::string_view key) { return Make(true, key); }

Result<TlsSession> TlsSession::Make(bool server, std::string_view key) {
  if (key.size() != kKeyBytes) return InvalidArgument("a TLS key has 32 bytes");
  if (Context(server) == nullptr) return Internal("TLS 1.3 is not available: " + LastError());
  auto impl = std::make_unique<Impl>();
  std::memcpy(impl->key.data(), key.data(), key.size());
  impl->ssl = SSL_new(Context(server));
  impl->in = BIO_new(BIO_s_mem());
  impl->out = BIO_new(BIO_s_mem());
  if (impl->ssl == nullptr || impl->in == nullptr || impl->out == nullptr) {
    if (impl->ssl == nullptr) {
      BIO_free(impl->in);
      BIO_free(impl->out);
    }
    return Internal("TLS: " + LastError());
  }
  BIO_set_mem_eof_return(impl->in, -1);  // no bytes now is not the end
  SSL_set_bio(impl->ssl, impl->in, impl->out);
  SSL_set_app_data(impl->ssl, &impl->key);
  if (server) {
    SSL_set_accept_state(impl->ssl);
  } else {
    SSL_set_connect_state(impl->ssl);
    ARC_TRY(impl->Advance());
  }
  return TlsSession(std::move(impl));
}

Status TlsSession::Impl::Advance() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl);
  if (result == 1) return Status::Ok();
  const int why = SSL_get_error(ssl, result);
  if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return Status::Ok();
  failed = true;
  return Unauthenticated("TLS handshake: " + LastError());
}

Status TlsSession::Impl::ReadPlain(std::string* plain) {
  char chunk[kChunk];
  for (;;) {
    ERR_clear_error();
    const int n = SSL_read(ssl, chunk, sizeof chunk);
    if (n > 0) {
      plain->append(chunk, static_cast<std::size_t>(n));
      // Asking for more than there is makes the library take a buffer and give it back.
      if (SSL_pending(ssl) == 0 && BIO_ctrl_pending(in) == 0) return Status::Ok();
      continue;
    }
    const int why = SSL_get_error(ssl, n);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return Status::Ok();
    failed = true;
    if (why == SSL_ERROR_ZERO_RETURN) return Unavailable("the peer ended TLS");
    return DataLoss("TLS: " + LastError());
  }
}

Status TlsSession::Feed(std::span<const std::byte> bytes, std::string* plain) {
  if (impl_->failed) return FailedPrecondition("the TLS session is over");
  for (std::size_t at = 0; at < bytes.size();) {
    const int n = BIO_write(impl_->in, bytes.data() + at,
                            static_cast<int>(std::min(kChunk, bytes.size() - at)));
    if (n <= 0) return Internal("TLS: no memory for bytes of the peer");
    at += static_cast<std::size_t>(n);
    if (!done()) ARC_TRY(impl_->Advance());
    if (done()) ARC_TRY(impl_->ReadPlain(plain));
  }
  return Status::Ok();
}

std::string TlsSession::TakeOutput() {
  std::string output(BIO_ctrl_pending(impl_->out), '\0');
  if (!output.empty()) BIO_read(impl_->out, output.data(), static_cast<int>(output.size()));
  return output;
}

Result<std::string> TlsSession::Encrypt(std::string_view plain) {
  if (!done()) return FailedPrecondition("the TLS handshake has not ended");
  ERR_clear_error();
  for (std::size_t at = 0; at < plain.size();) {
    std::size_t written = 0;
    const std::size_t size = std::min(plain.size() - at, kChunk);
    if (SSL_write_ex(impl_->ssl, plain.data() + at, size, &written) != 1) {
      impl_->failed = true;
      return Internal("TLS: " + LastError());
    }
    at += written;
  }
  return TakeOutput();
}

bool TlsSession::done() const { return !impl_->failed && SSL_is_init_finished(impl_->ssl) == 1; }

}  // namespace arcflow::net
