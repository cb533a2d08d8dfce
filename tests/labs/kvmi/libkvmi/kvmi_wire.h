/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The messages of KVMI (KVM-VMI's kernel, version 1 of the protocol with the numbers of libkvmi 1.1), written anew. */
#ifndef VMTREE_LAB_KVMI_WIRE_H
#define VMTREE_LAB_KVMI_WIRE_H

#include <asm/kvm.h>
#include <linux/types.h>

#define KVMI_VERSION 0x00000001

enum {
	KVMI_EVENT_REPLY = 0,
	KVMI_EVENT = 1,
	KVMI_GET_VERSION = 2,
	KVMI_CHECK_COMMAND = 3,
	KVMI_CHECK_EVENT = 4,
	KVMI_GET_GUEST_INFO = 5,
	KVMI_PAUSE_VCPU = 7,
	KVMI_CONTROL_VM_EVENTS = 8,
	KVMI_CONTROL_EVENTS = 9,
	KVMI_CONTROL_CR = 10,
	KVMI_CONTROL_MSR = 11,
	KVMI_GET_REGISTERS = 13,
	KVMI_SET_REGISTERS = 14,
	KVMI_READ_PHYSICAL = 17,
	KVMI_WRITE_PHYSICAL = 18,
	KVMI_INJECT_EXCEPTION = 19,
	KVMI_SET_PAGE_ACCESS = 21,
	KVMI_CONTROL_CMD_RESPONSE = 27,
	KVMI_GET_MAX_GFN = 29,
	KVMI_SWITCH_EPT_VIEW = 32,
	KVMI_GET_EPT_VIEW = 34,
	KVMI_VCPU_TRANSLATE_GVA = 35,
	KVMI_VCPU_GET_XCR = 37,
	KVMI_VCPU_ALLOC_GFN = 41,
	KVMI_VCPU_FREE_GFN = 42,
	KVMI_CREATE_EPT_VIEW = 43,
	KVMI_DESTROY_EPT_VIEW = 44,
	KVMI_VCPU_CHANGE_GFN = 60,
	KVMI_VCPU_CONTROL_SINGLESTEP = 63
};

enum {
	KVMI_EVENT_UNHOOK = 0,
	KVMI_EVENT_CR = 1,
	KVMI_EVENT_MSR = 2,
	KVMI_EVENT_XSETBV = 3,
	KVMI_EVENT_BREAKPOINT = 4,
	KVMI_EVENT_HYPERCALL = 5,
	KVMI_EVENT_PF = 6,
	KVMI_EVENT_TRAP = 7,
	KVMI_EVENT_DESCRIPTOR = 8,
	KVMI_EVENT_CREATE_VCPU = 9,
	KVMI_EVENT_PAUSE_VCPU = 10,
	KVMI_EVENT_SINGLESTEP = 11,
	KVMI_EVENT_CPUID = 13,
	KVMI_NUM_EVENTS
};

#define KVMI_EVENT_ACTION_CONTINUE 0
#define KVMI_EVENT_ACTION_RETRY 1
#define KVMI_EVENT_ACTION_CRASH 2

#define KVMI_PAGE_ACCESS_R (1 << 0)
#define KVMI_PAGE_ACCESS_W (1 << 1)
#define KVMI_PAGE_ACCESS_X (1 << 2)

#define KVMI_DESC_IDTR 1
#define KVMI_DESC_GDTR 2
#define KVMI_DESC_LDTR 3
#define KVMI_DESC_TR 4

/* Two pages with the header. */
#define KVMI_MSG_SIZE (4096 * 2 - sizeof(struct kvmi_msg_hdr))

struct kvmi_msg_hdr {
	__u16 id;
	__u16 size;
	__u32 seq;
};

/* Before the data of every answer. */
struct kvmi_error_code {
	__s32 err;
	__u32 padding;
};

/* Before the data of every command to a vCPU, and of every answer to its events. */
struct kvmi_vcpu_hdr {
	__u16 vcpu;
	__u16 padding1;
	__u32 padding2;
};

struct kvmi_features {
	__u8 spp;
	__u8 vmfunc;
	__u8 eptp;
	__u8 ve;
	__u8 padding[4];
};

struct kvmi_get_version_reply {
	__u32 version;
	__u32 padding;
	struct kvmi_features features;
};

struct kvmi_page_access_entry {
	__u64 gpa;
	__u8 access;
	__u8 padding1;
	__u16 padding2;
	__u32 padding3;
};

/* The state of the vCPU that goes with each of its events. */
struct kvmi_event_arch {
	__u8 mode; /* bytes of an address: 2, 4 or 8 */
	__u8 padding1;
	__u16 view;
	__u8 padding2[4];
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct {
		__u64 sysenter_cs;
		__u64 sysenter_esp;
		__u64 sysenter_eip;
		__u64 efer;
		__u64 star;
		__u64 lstar;
		__u64 cstar;
		__u64 pat;
		__u64 shadow_gs;
	} msrs;
};

struct kvmi_event {
	__u16 size;
	__u16 vcpu;
	__u8 event;
	__u8 padding[3];
	struct kvmi_event_arch arch;
};

struct kvmi_event_reply {
	__u8 action;
	__u8 event;
	__u16 padding1;
	__u32 padding2;
};

struct kvmi_event_cr {
	__u16 cr;
	__u16 padding[3];
	__u64 old_value;
	__u64 new_value;
};

struct kvmi_event_cr_reply {
	__u64 new_val;
};

struct kvmi_event_msr {
	__u32 msr;
	__u32 padding;
	__u64 old_value;
	__u64 new_value;
};

struct kvmi_event_msr_reply {
	__u64 new_val;
};

struct kvmi_event_breakpoint {
	__u64 gpa;
	__u8 insn_len;
	__u8 padding[7];
};

struct kvmi_event_pf {
	__u64 gva;
	__u64 gpa;
	__u8 access;
	__u8 padding1;
	__u16 view;
	__u32 padding2;
};

struct kvmi_event_pf_reply {
	__u64 ctx_addr;
	__u32 ctx_size;
	__u8 singlestep;
	__u8 rep_complete;
	__u16 padding;
	__u8 ctx_data[256];
};

struct kvmi_event_trap {
	__u8 vector;
	__u8 padding1;
	__u16 padding2;
	__u32 error_code;
	__u64 cr2;
};

struct kvmi_event_descriptor {
	__u8 descriptor;
	__u8 write;
	__u8 padding[6];
};

struct kvmi_event_cpuid {
	__u32 function;
	__u32 index;
	__u8 insn_length;
	__u8 padding1[3];
	__u32 padding2;
};

struct kvmi_event_singlestep {
	__u8 failed;
	__u8 padding[7];
};

#endif
