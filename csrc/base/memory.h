// Memory that is asked from the operating system once: zeroed pages (huge ones where the system has them) and read-only
// file mappings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace fmo {

// Zeroed, aligned to 2 MiB where it is large. Pages cost nothing until they are touched.
class PageBuffer {
 public:
  PageBuffer() = default;
  PageBuffer(int64_t num_bytes, const std::string& purpose);  // throws Error naming the purpose when there is no memory
  ~PageBuffer();
  PageBuffer(PageBuffer&& other) noexcept { *this = std::move(other); }
  PageBuffer& operator=(PageBuffer&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  char* data_ = nullptr;
  int64_t size_ = 0;
};

// A whole file, read-only and shared with the page cache; reading ahead is asked for.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  MappedFile& operator=(MappedFile&&) = delete;
  const char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fmo
