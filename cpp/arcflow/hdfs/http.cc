// SPDX-License-Identifier: Apache-2.0
// One transfer with a libcurl handle out of a pool.
#include "arcflow/hdfs/http.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "arcflow/hdfs/curl_library.h"

namespace arcflow::hdfs {
namespace {

constexpr std::size_t kMaxIdlePerHost = 8;
constexpr std::size_t kMaxErrorBody = std::size_t{64} * 1024;
constexpr std::size_t kMaxHeader = std::size_t{16} * 1024;  // a redirect carries a token
constexpr long kBufferBytes = 512L * 1024;                  // the most that libcurl takes

/// State of one transfer; libcurl's callbacks get a pointer to it.
struct Transfer {
  const CurlLibrary* curl = nullptr;
  CURL* handle = nullptr;
  const HttpRequest* request = nullptr;
  HttpResponse response;
  Status failure;  // of a callback
  bool checked = false;
  curl_off_t moved = 0;
  std::chrono::seconds stall_timeout{0};
  Deadline stall = Deadline::Infinite();

  std::size_t Fail(Status status) {
    if (failure.ok()) failure = std::move(status);
    return 0;
  }
  int status() const {
    long code = 0;  // NOLINT(google-runtime-int): libcurl's type
    curl->easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &code);
    return static_cast<int>(code);
  }
};

std::size_t OnBody(char* bytes, std::size_t, std::size_t n, void* data) {
  auto& t = *static_cast<Transfer*>(data);
  const int status = t.status();
  const bool fine = status >= 200 && status < 300;
  if (fine && t.request->sink) {
    if (t.request->check && !t.checked) {
      t.checked = true;
      Status fit = t.request->check(t.response);
      if (!fit.ok()) return t.Fail(std::move(fit));
    }
    Status taken = t.request->sink({bytes, n});
    return taken.ok() ? n : t.Fail(std::move(taken));
  }
  const std::size_t bound = fine ? t.request->max_body_bytes : kMaxErrorBody;
  if (t.response.body.size() + n > bound) {
    if (!fine) return n;  // the beginning of an error page is enough
    return t.Fail(
        ResourceExhausted("the answer is over the bound of " + std::to_string(bound) + " bytes"));
  }
  t.response.body.append(bytes, n);
  return n;
}

std::size_t OnSend(char* buffer, std::size_t, std::size_t n, void* data) {
  auto& t = *static_cast<Transfer*>(data);
  auto filled = t.request->source({buffer, n});  // may wait for its caller: that is no stall
  t.stall = Deadline::After(t.stall_timeout);
  if (filled.ok()) return *filled;
  t.Fail(filled.status());
  return CURL_READFUNC_ABORT;
}

bool HasName(std::string_view line, std::string_view name) {
  return line.size() > name.size() && line[name.size()] == ':' &&
         std::equal(name.begin(), name.end(), line.begin(), [](char a, char b) {
           return a == std::tolower(static_cast<unsigned char>(b));
         });
}

std::string ValueOf(std::string_view line) {
  line.remove_prefix(line.find(':') + 1);
  while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
  while (!line.empty() && static_cast<unsigned char>(line.back()) <= ' ') line.remove_suffix(1);
  return std::string(line);
}

std::size_t OnHeader(char* bytes, std::size_t, std::size_t n, void* data) {
  auto& t = *static_cast<Transfer*>(data);
  const std::string_view line(bytes, n);
  if (n > kMaxHeader) return t.Fail(DataLoss("a header of the answer is over its bound"));
  if (line.substr(0, 5) == "HTTP/") {  // a new answer: after 100 Continue, or a step of SPNEGO
    t.response = {};
  } else if (HasName(line, "content-length")) {
    const std::string value = ValueOf(line);
    std::uint64_t length = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), length);
    if (error == std::errc() && end == value.data() + value.size()) {
      t.response.content_length = length;
    }
  } else if (HasName(line, "content-range")) {
    t.response.content_range = ValueOf(line);
  } else if (HasName(line, "content-type")) {
    t.response.content_type = ValueOf(line);
  } else if (HasName(line, "location")) {
    t.response.location = ValueOf(line);
  } else if (HasName(line, "www-authenticate")) {
    t.response.authenticate = ValueOf(line);
  }
  return n;
}

int OnProgress(void* data, curl_off_t, curl_off_t received, curl_off_t, curl_off_t sent) {
  auto& t = *static_cast<Transfer*>(data);
  if (received + sent != t.moved) {
    t.moved = received + sent;
    t.stall = Deadline::After(t.stall_timeout);
  } else if (t.stall.expired()) {
    t.Fail(Unavailable("no byte moved for " + std::to_string(t.stall_timeout.count()) + " s"));
    return 1;
  }
  if (t.request->cancelled != nullptr && t.request->cancelled->load(std::memory_order_relaxed)) {
    t.Fail(Cancelled("the transfer was cancelled"));
    return 1;
  }
  if (t.request->deadline.expired()) {
    t.Fail(DeadlineExceeded("the operation took longer than its time limit"));
    return 1;
  }
  return 0;
}

int OnSeek(void*, curl_off_t, int) { return CURL_SEEKFUNC_CANTSEEK; }

}  // namespace

struct HttpClient::Impl {
  const CurlLibrary* curl = nullptr;
  Options options;
  std::mutex mutex;
  std::map<std::string, std::vector<CURL*>> idle;  // by "scheme://host:port"
  pid_t owner = getpid();

  CURL* Take(const std::string& key) {
    {
      const std::lock_guard lock(mutex);
      if (owner != getpid()) {  // the connections are the parent's: forget them, unclosed
        idle.clear();
        owner = getpid();
      }
      auto& handles = idle[key];
      if (!handles.empty()) {
        CURL* handle = handles.back();
        handles.pop_back();
        curl->easy_reset(handle);
        return handle;
      }
    }
    CURL* fresh = curl->easy_init();
    // Switches the cookie engine on, which keeps the signed cookie that follows SPNEGO, by a cookie
    // that has expired. CURLOPT_COOKIEFILE would do the same and leak at every easy_reset.
    if (fresh != nullptr)
      curl->easy_setopt(fresh, CURLOPT_COOKIELIST, "Set-Cookie: a=b; Max-Age=0");
    return fresh;
  }

  void Return(const std::string& key, CURL* handle, bool reusable) {
    if (reusable) {
      const std::lock_guard lock(mutex);
      auto& handles = idle[key];
      if (handles.size() < kMaxIdlePerHost) {
        handles.push_back(handle);
        return;
      }
    }
    curl->easy_cleanup(handle);
  }

  void SetCommon(Transfer* t, const std::string& url);
  void SetBody(Transfer* t, curl_slist** headers);
  Status StatusOf(const Transfer& t, CURLcode code, const char* text) const;
};

void HttpClient::Impl::SetCommon(Transfer* t, const std::string& url) {
  const auto set = curl->easy_setopt;
  CURL* h = t->handle;
  set(h, CURLOPT_URL, url.c_str());
  set(h, CURLOPT_NOSIGNAL, 1L);
  set(h, CURLOPT_PROXY, "");  // a proxy of the environment must not see the cluster's data
  set(h, CURLOPT_PATH_AS_IS, 1L);
  set(h, CURLOPT_FOLLOWLOCATION, 0L);
  set(h, CURLOPT_USERAGENT, "arcflow");
  set(h, CURLOPT_BUFFERSIZE, kBufferBytes);
  set(h, CURLOPT_UPLOAD_BUFFERSIZE, kBufferBytes);
  set(h, CURLOPT_WRITEFUNCTION, &OnBody);
  set(h, CURLOPT_WRITEDATA, t);
  set(h, CURLOPT_HEADERFUNCTION, &OnHeader);
  set(h, CURLOPT_HEADERDATA, t);
  set(h, CURLOPT_NOPROGRESS, 0L);
  set(h, CURLOPT_XFERINFOFUNCTION, &OnProgress);
  set(h, CURLOPT_XFERINFODATA, t);
  set(h, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_timeout.count()));
  set(h, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  if (!options.ca_file.empty()) set(h, CURLOPT_CAINFO, options.ca_file.c_str());
  if (options.kerberos && t->request->may_negotiate) {
    set(h, CURLOPT_HTTPAUTH, CURLAUTH_NEGOTIATE);
    set(h, CURLOPT_USERPWD, ":");  // the user is the ticket's
  }
}

void HttpClient::Impl::SetBody(Transfer* t, curl_slist** headers) {
  const auto set = curl->easy_setopt;
  const HttpRequest& request = *t->request;
  if (request.source) {
    set(t->handle, CURLOPT_UPLOAD, 1L);
    set(t->handle, CURLOPT_READFUNCTION, &OnSend);
    set(t->handle, CURLOPT_READDATA, t);
    set(t->handle, CURLOPT_SEEKFUNCTION, &OnSeek);
    if (request.source_bytes) {
      set(t->handle, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(*request.source_bytes));
    }
    *headers = curl->slist_append(*headers, "Content-Type: application/octet-stream");
    *headers = curl->slist_append(*headers, "Expect:");  // the redirect has asked already
  } else if (request.method != "GET") {
    set(t->handle, CURLOPT_POSTFIELDS, "");
    set(t->handle, CURLOPT_POSTFIELDSIZE, 0L);
    *headers = curl->slist_append(*headers, "Content-Type: application/octet-stream");
  }
  if (request.method != "GET") set(t->handle, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  if (*headers != nullptr) set(t->handle, CURLOPT_HTTPHEADER, *headers);
}

Status HttpClient::Impl::StatusOf(const Transfer& t, CURLcode code, const char* text) const {
  if (!t.failure.ok()) return t.failure;
  if (code == CURLE_OK) return Status::Ok();
  const std::string what = *text != '\0' ? text : curl->easy_strerror(code);
  switch (code) {
    case CURLE_PARTIAL_FILE:
      return DataLoss("the body ended before its announced length: " + what);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
      return Unauthenticated("the server's certificate cannot be trusted: " + what +
                             "; name its authority in ARCFLOW_HDFS_CA_FILE");
    case CURLE_OUT_OF_MEMORY:
      return ResourceExhausted(what);
    default:
      return Unavailable(what);
  }
}

HttpClient::HttpClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpClient::~HttpClient() {
  if (impl_->owner != getpid()) return;
  for (const auto& [key, handles] : impl_->idle) {
    for (CURL* handle : handles) impl_->curl->easy_cleanup(handle);
  }
}

Result<std::unique_ptr<HttpClient>> HttpClient::Make(const Options& options) {
  auto impl = std::make_unique<Impl>();
  ARC_ASSIGN(impl->curl, CurlLibrary::Get());
  if (options.kerberos && !impl->curl->has_negotiate) {
    return Unavailable(
        "the cluster asks for Kerberos, but the libcurl of this machine was built "
        "without it");
  }
  impl->options = options;
  return std::unique_ptr<HttpClient>(new HttpClient(std::move(impl)));
}

Result<HttpResponse> HttpClient::Perform(const HttpRequest& request) {
  if (request.deadline.expired()) return DeadlineExceeded("no time is left for the request");
  const std::string key = request.url.scheme + "://" + request.url.Authority();
  Transfer transfer;
  transfer.curl = impl_->curl;
  transfer.request = &request;
  transfer.stall_timeout = impl_->options.stall_timeout;
  transfer.stall = Deadline::After(impl_->options.stall_timeout);
  transfer.handle = impl_->Take(key);
  if (transfer.handle == nullptr) return ResourceExhausted("libcurl gives no handle");
  const std::string url = request.url.ToString();
  char text[CURL_ERROR_SIZE] = "";
  curl_slist* headers = nullptr;
  impl_->SetCommon(&transfer, url);
  impl_->SetBody(&transfer, &headers);
  impl_->curl->easy_setopt(transfer.handle, CURLOPT_ERRORBUFFER, text);
  const CURLcode code = impl_->curl->easy_perform(transfer.handle);
  transfer.response.status = transfer.status();
  impl_->curl->slist_free_all(headers);
  const Status status = impl_->StatusOf(transfer, code, text);
  // A handle that failed may hold a connection in the middle of an answer.
  impl_->Return(key, transfer.handle, code == CURLE_OK);
  if (!status.ok()) return status.WithContext(key);
  return std::move(transfer.response);
}

}  // namespace arcflow::hdfs
