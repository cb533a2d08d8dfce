/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The C interface of libkvmi as far as the crates kvmi and kvmi-sys and vmtree's driver use it, written anew for vmtree's lab: names,
 * numbers and layouts are those of libkvmi 1.1, so that what is built with this header also runs with that library.
 */
#ifndef VMTREE_LAB_LIBKVMI_H
#define VMTREE_LAB_LIBKVMI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvmi_wire.h"

typedef int kvmi_timeout_t;

enum { KVMI_NOWAIT = 0, KVMI_WAIT = 150 };

/* An event as it is handed out: the caller frees it by free(). */
struct kvmi_dom_event {
	void *next;
	struct {
		struct kvmi_event common;
		union {
			struct kvmi_event_cr cr;
			struct kvmi_event_msr msr;
			struct kvmi_event_breakpoint breakpoint;
			struct kvmi_event_pf page_fault;
			struct kvmi_event_trap trap;
			struct kvmi_event_descriptor desc;
			struct kvmi_event_cpuid cpuid;
			struct kvmi_event_singlestep ss;
		};
	} event;
	unsigned char buf[KVMI_MSG_SIZE];
	unsigned int seq;
};

/* What QEMU says first, and what it is answered. */
struct kvmi_qemu2introspector {
	uint32_t struct_size;
	unsigned char uuid[16];
	uint32_t padding;
	int64_t start_time;
	char name[64];
};

struct kvmi_introspector2qemu {
	uint32_t struct_size;
	uint8_t cookie_hash[20];
};

typedef enum {
	KVMI_LOG_LEVEL_DEBUG,
	KVMI_LOG_LEVEL_INFO,
	KVMI_LOG_LEVEL_WARNING,
	KVMI_LOG_LEVEL_ERROR
} kvmi_log_level;

typedef void (*kvmi_log_cb)(kvmi_log_level level, const char *text, void *ctx);
typedef int (*kvmi_new_guest_cb)(void *dom, unsigned char (*uuid)[16], void *ctx);
typedef int (*kvmi_handshake_cb)(const struct kvmi_qemu2introspector *, struct kvmi_introspector2qemu *,
				 void *ctx);

#ifdef __cplusplus
extern "C" {
#endif

/* Connections. */
void *kvmi_init_vsock(unsigned int port, kvmi_new_guest_cb accept_cb, kvmi_handshake_cb hsk_cb, void *cb_ctx);
void *kvmi_init_unix_socket(const char *path, kvmi_new_guest_cb accept_cb, kvmi_handshake_cb hsk_cb,
			    void *cb_ctx);
void kvmi_uninit(void *ctx);
void kvmi_close(void *ctx);
void kvmi_domain_close(void *dom, bool do_shutdown);
bool kvmi_domain_is_connected(const void *dom);
void kvmi_domain_name(const void *dom, char *dest, size_t dest_size);
int kvmi_connection_fd(const void *dom);
void kvmi_set_log_cb(kvmi_log_cb cb, void *ctx);

/* Facts. */
int kvmi_get_version(void *dom, unsigned int *version);
int kvmi_check_command(void *dom, int id);
int kvmi_check_event(void *dom, int id);
int kvmi_get_vcpu_count(void *dom, unsigned int *count);
int kvmi_get_maximum_gfn(void *dom, unsigned long long *gfn);
int kvmi_eptp_support(void *dom, bool *supported);

/* Memory. */
int kvmi_read_physical(void *dom, unsigned long long int gpa, void *buffer, size_t size);
int kvmi_write_physical(void *dom, unsigned long long int gpa, const void *buffer, size_t size);
int kvmi_set_page_access(void *dom, unsigned long long int *gpa, unsigned char *access, unsigned short count,
			 unsigned short view);
int kvmi_translate_gva(void *dom, unsigned short vcpu, __u64 gva, __u64 *gpa);

/* vCPUs. */
int kvmi_pause_all_vcpus(void *dom, unsigned int count);
int kvmi_get_registers(void *dom, unsigned short vcpu, struct kvm_regs *regs, struct kvm_sregs *sregs,
		       struct kvm_msrs *msrs, unsigned int *mode);
int kvmi_set_registers(void *dom, unsigned short vcpu, const struct kvm_regs *regs);
int kvmi_inject_exception(void *dom, unsigned short vcpu, unsigned long long int gva, unsigned int error,
			  unsigned char vector);
int kvmi_get_xcr(void *dom, unsigned short vcpu, __u8 xcr, __u64 *value);

/* Many commands in one send. */
void *kvmi_batch_alloc(void *dom);
int kvmi_batch_commit(void *batch);
void kvmi_batch_free(void *batch);
int kvmi_queue_pause_vcpu(void *batch, unsigned short vcpu);
int kvmi_queue_page_access(void *batch, unsigned long long int *gpa, unsigned char *access,
			   unsigned short count, unsigned short view);

/* Events. */
int kvmi_control_events(void *dom, unsigned short vcpu, int id, bool enable);
int kvmi_control_vm_events(void *dom, int id, bool enable);
int kvmi_control_cr(void *dom, unsigned short vcpu, unsigned int cr, bool enable);
int kvmi_control_msr(void *dom, unsigned short vcpu, unsigned int msr, bool enable);
int kvmi_control_singlestep(void *dom, unsigned short vcpu, bool enable);
int kvmi_wait_event(void *dom, kvmi_timeout_t ms);
int kvmi_pop_event(void *dom, struct kvmi_dom_event **event);
int kvmi_reply_event(void *dom, unsigned int msg_seq, const void *data, size_t data_size);
size_t kvmi_get_pending_events(void *dom);

/* EPT views. */
int kvmi_create_ept_view(void *dom, unsigned short *view);
int kvmi_destroy_ept_view(void *dom, unsigned short view);
int kvmi_switch_ept_view(void *dom, unsigned short vcpu, unsigned short view);
int kvmi_get_ept_view(void *dom, unsigned short vcpu, unsigned short *view);
int kvmi_change_gfn(void *dom, unsigned short vcpu, unsigned short view, __u64 old_gfn, __u64 new_gfn);
int kvmi_alloc_gfn(void *dom, __u64 gfn);
int kvmi_free_gfn(void *dom, __u64 gfn);

#ifdef __cplusplus
}
#endif

#endif
