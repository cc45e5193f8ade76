#include "base/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace fmo {
namespace {

constexpr int64_t kHugePageBytes = 2 << 20;

}  // namespace

PageBuffer::PageBuffer(int64_t num_bytes, const std::string& purpose) : size_(num_bytes) {
  const bool huge = num_bytes >= kHugePageBytes;
  mapped_bytes_ = static_cast<size_t>(checked_add(num_bytes < 1 ? 1 : num_bytes, huge ? 2 * kHugePageBytes : 0));
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw Error("no memory for " + purpose + ": " + std::to_string(num_bytes) + " bytes", "executor",
                "lower the number of KV blocks or the number of tokens per step");
  }
  data_ = static_cast<char*>(mapping_);
  if (huge) {
    const auto address = reinterpret_cast<uintptr_t>(data_);
    data_ = reinterpret_cast<char*>(address + (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes);
    madvise(data_, static_cast<size_t>(round_up(num_bytes, kHugePageBytes)),
            MADV_HUGEPAGE);  // a wish: failure changes nothing but speed
  }
}

PageBuffer::~PageBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
}

MappedFile::MappedFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0)
    throw Error("cannot open the weights: " + std::string(std::strerror(errno)), path,
                "check that the artifact is complete and readable");
  struct stat status {};
  const bool known = fstat(file, &status) == 0 && status.st_size > 0;
  void* mapping =
      known ? mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  close(file);
  if (mapping == MAP_FAILED)
    throw Error("cannot map the weights into memory", path,
                "check that the file is not empty and that memory is not limited");
  data_ = static_cast<const char*>(mapping);
  size_ = status.st_size;
  madvise(mapping, static_cast<size_t>(size_), MADV_WILLNEED);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), static_cast<size_t>(size_));
}

}  // namespace fmo
