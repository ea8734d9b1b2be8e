// SPDX-License-Identifier: Apache-2.0
// Opens libcurl and finds its functions.
#include "arcflow/hdfs/curl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace arcflow::hdfs {
namespace {

// curl.h makes a macro of it; its name is needed here.
#undef curl_easy_setopt
#undef curl_easy_getinfo

template <typename Function>
bool Find(void* handle, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(handle, name));
  return *out != nullptr;
}

/// TensorFlow exports the functions of the curl and the TLS that it has inside, to the whole
/// process: libcurl has to prefer its own to them. Sanitizers refuse the flag, and their builds
/// have no TensorFlow.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kOpenFlags = RTLD_NOW | RTLD_LOCAL;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr int kOpenFlags = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kOpenFlags = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif
#else
constexpr int kOpenFlags = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

// The flag also makes libcurl prefer libc's allocator to a preloaded one, which libc's own strdup
// does not: one set of functions, ours, keeps blocks and their release together.
void* Allocate(std::size_t n) { return std::malloc(n); }
void Free(void* block) { std::free(block); }
void* Reallocate(void* block, std::size_t n) { return std::realloc(block, n); }
char* Duplicate(const char* text) { return ::strdup(text); }
void* AllocateZeroed(std::size_t count, std::size_t n) { return std::calloc(count, n); }

Result<const CurlLibrary*> Open() {
  void* handle = nullptr;
  for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4"}) {
    handle = dlopen(name, kOpenFlags);
    if (handle != nullptr) break;
  }
  if (handle == nullptr) {
    const char* why = dlerror();
    return Unavailable(std::string("hdfs:// needs libcurl on this machine; install it (Debian and "
                                   "Ubuntu: libcurl4, Red Hat: libcurl): ") +
                       (why != nullptr ? why : "not found"));
  }
  static CurlLibrary library;
  CURLcode (*global_init)(long, curl_malloc_callback, curl_free_callback, curl_realloc_callback,
                          curl_strdup_callback, curl_calloc_callback) = nullptr;
  curl_version_info_data* (*version_info)(CURLversion) = nullptr;
  CurlLibrary& l = library;
  const bool whole = Find(handle, "curl_global_init_mem", &global_init) &&
                     Find(handle, "curl_version_info", &version_info) &&
                     Find(handle, "curl_easy_init", &l.easy_init) &&
                     Find(handle, "curl_easy_cleanup", &l.easy_cleanup) &&
                     Find(handle, "curl_easy_reset", &l.easy_reset) &&
                     Find(handle, "curl_easy_perform", &l.easy_perform) &&
                     Find(handle, "curl_easy_setopt", &l.easy_setopt) &&
                     Find(handle, "curl_easy_getinfo", &l.easy_getinfo) &&
                     Find(handle, "curl_easy_strerror", &l.easy_strerror) &&
                     Find(handle, "curl_slist_append", &l.slist_append) &&
                     Find(handle, "curl_slist_free_all", &l.slist_free_all);
  if (!whole) return Unavailable("the libcurl of this machine lacks functions that hdfs:// needs");
  if (global_init(CURL_GLOBAL_DEFAULT, &Allocate, &Free, &Reallocate, &Duplicate,
                  &AllocateZeroed) != CURLE_OK) {
    return Unavailable("libcurl does not start");
  }
  l.has_negotiate = (version_info(CURLVERSION_NOW)->features & CURL_VERSION_SPNEGO) != 0;
  return &library;
}

}  // namespace

Result<const CurlLibrary*> CurlLibrary::Get() {
  static const Result<const CurlLibrary*> opened = Open();  // once, whichever thread comes first
  return opened;
}

}  // namespace arcflow::hdfs
