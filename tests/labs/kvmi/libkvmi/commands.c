// SPDX-License-Identifier: GPL-3.0-or-later
// The commands, one function each: what is sent, and what comes back.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dom.h"

// A command to a vCPU that has nothing to tell but whether it worked.
#define TO_VCPU(id, number, fields, ...)                                                       \
	struct {                                                                               \
		struct kvmi_vcpu_hdr vcpu;                                                     \
		fields                                                                         \
	} request = { .vcpu = { .vcpu = number }, __VA_ARGS__ };                               \
	return ask(dom, id, &request, sizeof(request), NULL, 0, 0, NULL)

int kvmi_get_version(void *dom, unsigned int *number)
{
	*number = ((struct dom *)dom)->version;
	return 0;
}

int kvmi_eptp_support(void *dom, bool *supported)
{
	*supported = ((struct dom *)dom)->features.eptp;
	return 0;
}

static int check(void *dom, unsigned short command, int id)
{
	struct {
		__u16 id;
		__u16 padding[3];
	} request = { .id = id };

	return ask(dom, command, &request, sizeof(request), NULL, 0, 0, NULL);
}

int kvmi_check_command(void *dom, int id)
{
	return check(dom, KVMI_CHECK_COMMAND, id);
}

int kvmi_check_event(void *dom, int id)
{
	return check(dom, KVMI_CHECK_EVENT, id);
}

int kvmi_get_vcpu_count(void *dom, unsigned int *count)
{
	__u32 reply[4];

	if (ask(dom, KVMI_GET_GUEST_INFO, NULL, 0, reply, sizeof(__u32), sizeof(reply), NULL))
		return -1;
	*count = reply[0];
	return 0;
}

int kvmi_get_maximum_gfn(void *dom, unsigned long long *gfn)
{
	__u64 reply;

	if (ask(dom, KVMI_GET_MAX_GFN, NULL, 0, &reply, sizeof(reply), sizeof(reply), NULL))
		return -1;
	*gfn = reply;
	return 0;
}

int kvmi_read_physical(void *dom, unsigned long long int gpa, void *buffer, size_t size)
{
	__u64 request[2] = { gpa, size };

	return ask(dom, KVMI_READ_PHYSICAL, request, sizeof(request), buffer, size, size, NULL);
}

int kvmi_write_physical(void *dom, unsigned long long int gpa, const void *buffer, size_t size)
{
	struct {
		__u64 gpa;
		__u64 size;
		__u8 data[4096];
	} request = { .gpa = gpa, .size = size };

	if (size > sizeof(request.data)) {
		errno = EINVAL;
		return -1;
	}
	memcpy(request.data, buffer, size);
	return ask(dom, KVMI_WRITE_PHYSICAL, &request, offsetof(__typeof__(request), data) + size, NULL, 0, 0, NULL);
}

int kvmi_translate_gva(void *dom, unsigned short vcpu, __u64 gva, __u64 *gpa)
{
	struct {
		struct kvmi_vcpu_hdr vcpu;
		__u64 gva;
	} request = { .vcpu = { .vcpu = vcpu }, .gva = gva };

	return ask(dom, KVMI_VCPU_TRANSLATE_GVA, &request, sizeof(request), gpa, sizeof(*gpa), sizeof(*gpa), NULL);
}

int kvmi_get_registers(void *dom, unsigned short vcpu, struct kvm_regs *regs, struct kvm_sregs *sregs,
		       struct kvm_msrs *msrs, unsigned int *mode)
{
	size_t values = msrs->nmsrs * sizeof(struct kvm_msr_entry);
	struct {
		__u32 mode;
		__u32 padding;
		struct kvm_regs regs;
		struct kvm_sregs sregs;
		struct kvm_msrs msrs;
	} *reply;
	struct {
		struct kvmi_vcpu_hdr vcpu;
		__u16 count;
		__u16 padding[3];
		__u32 index[128];
	} request = { .vcpu = { .vcpu = vcpu }, .count = msrs->nmsrs };
	int failed;

	if (msrs->nmsrs > 128) {
		errno = EINVAL;
		return -1;
	}
	for (__u32 i = 0; i < msrs->nmsrs; i++)
		request.index[i] = msrs->entries[i].index;
	reply = calloc(1, sizeof(*reply) + values);
	if (!reply)
		return -1;
	failed = ask(dom, KVMI_GET_REGISTERS, &request,
		     offsetof(__typeof__(request), index) + msrs->nmsrs * sizeof(__u32), reply,
		     sizeof(*reply) + values, sizeof(*reply) + values, NULL);
	if (!failed) {
		*mode = reply->mode;
		*regs = reply->regs;
		*sregs = reply->sregs;
		memcpy(msrs->entries, (char *)reply + sizeof(*reply), values);
	}
	free(reply);
	return failed;
}

int kvmi_set_registers(void *dom, unsigned short vcpu, const struct kvm_regs *regs)
{
	TO_VCPU(KVMI_SET_REGISTERS, vcpu, struct kvm_regs regs;, .regs = *regs);
}

int kvmi_inject_exception(void *dom, unsigned short vcpu, unsigned long long int gva, unsigned int error,
			  unsigned char vector)
{
	TO_VCPU(KVMI_INJECT_EXCEPTION, vcpu, __u8 number; __u8 padding[3]; __u32 error; __u64 address;
		, .number = vector, .error = error, .address = gva);
}

int kvmi_get_xcr(void *dom, unsigned short vcpu, __u8 xcr, __u64 *value)
{
	struct {
		struct kvmi_vcpu_hdr vcpu;
		__u8 xcr;
		__u8 padding[7];
	} request = { .vcpu = { .vcpu = vcpu }, .xcr = xcr };

	return ask(dom, KVMI_VCPU_GET_XCR, &request, sizeof(request), value, sizeof(*value), sizeof(*value), NULL);
}

static int control(void *dom, unsigned short command, unsigned short vcpu, int id, bool enable)
{
	TO_VCPU(command, vcpu, __u16 id; __u8 enable; __u8 padding1; __u32 padding2;, .id = id, .enable = enable);
}

int kvmi_control_events(void *dom, unsigned short vcpu, int id, bool enable)
{
	return control(dom, KVMI_CONTROL_EVENTS, vcpu, id, enable);
}

int kvmi_control_vm_events(void *dom, int id, bool enable)
{
	struct {
		__u16 id;
		__u8 enable;
		__u8 padding1;
		__u32 padding2;
	} request = { .id = id, .enable = enable };

	return ask(dom, KVMI_CONTROL_VM_EVENTS, &request, sizeof(request), NULL, 0, 0, NULL);
}

static int control_register(void *dom, unsigned short command, unsigned short vcpu, __u32 index, bool enable)
{
	TO_VCPU(command, vcpu, __u8 enable; __u8 padding[3]; __u32 index;, .enable = enable, .index = index);
}

int kvmi_control_cr(void *dom, unsigned short vcpu, unsigned int cr, bool enable)
{
	return control_register(dom, KVMI_CONTROL_CR, vcpu, cr, enable);
}

int kvmi_control_msr(void *dom, unsigned short vcpu, unsigned int msr, bool enable)
{
	return control_register(dom, KVMI_CONTROL_MSR, vcpu, msr, enable);
}

int kvmi_control_singlestep(void *dom, unsigned short vcpu, bool enable)
{
	TO_VCPU(KVMI_VCPU_CONTROL_SINGLESTEP, vcpu, __u8 enable; __u8 padding[7];, .enable = enable);
}

int kvmi_create_ept_view(void *dom, unsigned short *view)
{
	__u16 reply[4];

	if (ask(dom, KVMI_CREATE_EPT_VIEW, NULL, 0, reply, sizeof(reply), sizeof(reply), NULL))
		return -1;
	*view = reply[0];
	return 0;
}

int kvmi_destroy_ept_view(void *dom, unsigned short view)
{
	__u16 request[4] = { view };

	return ask(dom, KVMI_DESTROY_EPT_VIEW, request, sizeof(request), NULL, 0, 0, NULL);
}

int kvmi_switch_ept_view(void *dom, unsigned short vcpu, unsigned short view)
{
	TO_VCPU(KVMI_SWITCH_EPT_VIEW, vcpu, __u16 view; __u16 padding[3];, .view = view);
}

int kvmi_get_ept_view(void *dom, unsigned short vcpu, unsigned short *view)
{
	struct kvmi_vcpu_hdr request = { .vcpu = vcpu };
	__u16 reply[4];

	if (ask(dom, KVMI_GET_EPT_VIEW, &request, sizeof(request), reply, sizeof(reply), sizeof(reply), NULL))
		return -1;
	*view = reply[0];
	return 0;
}

int kvmi_change_gfn(void *dom, unsigned short vcpu, unsigned short view, __u64 old_gfn, __u64 new_gfn)
{
	TO_VCPU(KVMI_VCPU_CHANGE_GFN, vcpu, __u16 view; __u16 padding[3]; __u64 old; __u64 new;
		, .view = view, .old = old_gfn, .new = new_gfn);
}

int kvmi_alloc_gfn(void *dom, __u64 gfn)
{
	TO_VCPU(KVMI_VCPU_ALLOC_GFN, 0, __u64 gfn;, .gfn = gfn);
}

int kvmi_free_gfn(void *dom, __u64 gfn)
{
	TO_VCPU(KVMI_VCPU_FREE_GFN, 0, __u64 gfn;, .gfn = gfn);
}
