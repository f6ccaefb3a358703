// Lets fake tensors on the device "cuda" run forward and backward with a PyTorch that was built for CPUs only.
//
// Such a PyTorch knows no device guard, no stream and no accelerator for CUDA, and its autograd engine asks for all
// three. These stand-ins do nothing. They must be loaded before PyTorch itself, which looks for its CUDA hooks once.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {

struct StandInHooks final : CUDAHooksInterface {
  explicit StandInHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
};

C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, StandInHooks)

}  // namespace at

namespace {

using c10::Device;
using c10::DeviceType;
using c10::Stream;

const Device device(DeviceType::CUDA, 0);

struct StandInGuard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return device; }
  Device exchangeDevice(Device) const override { return device; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, device); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, device); }
  void record(void**, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, StandInGuard)

}  // namespace
