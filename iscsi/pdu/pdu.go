// Package pdu reads and writes iSCSI protocol data units, their text keys and
// their digests (RFC 7143). It knows the wire and nothing of sessions.
package pdu

import (
	"encoding/binary"
	"fmt"
)

// Header is a basic header segment. The accessors don't check that a field
// belongs to the PDU's type: the caller has looked at Op first.
type Header [HeaderLen]byte

var be = binary.BigEndian

// Op returns the opcode without the immediate bit.
func (h *Header) Op() Op { return Op(h[offOpcode] & opMask) }

// Immediate reports the I bit: deliver at once, without advancing CmdSN.
func (h *Header) Immediate() bool { return h[offOpcode]&immediate != 0 }

// SetOp sets the opcode and clears the immediate bit.
func (h *Header) SetOp(op Op) { h[offOpcode] = byte(op) }

// SetImmediate sets the I bit.
func (h *Header) SetImmediate() { h[offOpcode] |= immediate }

// Flags returns the second byte: F, C, T, S, residual bits, function or reason.
func (h *Header) Flags() byte { return h[offFlags] }

// SetFlags sets the second byte.
func (h *Header) SetFlags(f byte) { h[offFlags] = f }

// Final reports the F bit.
func (h *Header) Final() bool { return h[offFlags]&FlagFinal != 0 }

// AHSLen returns the length of the additional header segments in bytes.
func (h *Header) AHSLen() int { return int(h[offAHSLen]) * 4 }

// SetAHSLen sets the length of the additional header segments, a multiple of 4.
func (h *Header) SetAHSLen(n int) { h[offAHSLen] = byte(n / 4) }

// DataLen returns the length of the data segment in bytes, without padding.
func (h *Header) DataLen() int {
	return int(h[offDataLen])<<16 | int(h[offDataLen+1])<<8 | int(h[offDataLen+2])
}

// SetDataLen sets the length of the data segment; n is below 1<<24.
func (h *Header) SetDataLen(n int) {
	h[offDataLen], h[offDataLen+1], h[offDataLen+2] = byte(n>>16), byte(n>>8), byte(n)
}

// LUN returns the eight bytes of the logical unit number as SAM-5 lays it out.
func (h *Header) LUN() uint64 { return be.Uint64(h[offLUN:]) }

// SetLUN sets the logical unit number.
func (h *Header) SetLUN(l uint64) { be.PutUint64(h[offLUN:], l) }

// ITT returns the initiator task tag.
func (h *Header) ITT() uint32 { return be.Uint32(h[offITT:]) }

// SetITT sets the initiator task tag.
func (h *Header) SetITT(t uint32) { be.PutUint32(h[offITT:], t) }

// TTT returns the target transfer tag.
func (h *Header) TTT() uint32 { return be.Uint32(h[offTTT:]) }

// SetTTT sets the target transfer tag.
func (h *Header) SetTTT(t uint32) { be.PutUint32(h[offTTT:], t) }

// EDTL returns the expected data transfer length of a SCSI Command, in bytes.
func (h *Header) EDTL() uint32 { return be.Uint32(h[offTTT:]) }

// SetEDTL sets the expected data transfer length of a SCSI Command.
func (h *Header) SetEDTL(n uint32) { be.PutUint32(h[offTTT:], n) }

// RefTag returns the referenced task tag of a task management request.
func (h *Header) RefTag() uint32 { return be.Uint32(h[offTTT:]) }

// CID returns the connection id of a Login or Logout request.
func (h *Header) CID() uint16 { return be.Uint16(h[offTTT:]) }

// SetCID sets the connection id of a Login or Logout request.
func (h *Header) SetCID(c uint16) { be.PutUint16(h[offTTT:], c) }

// CmdSN returns the command sequence number of a request.
func (h *Header) CmdSN() uint32 { return be.Uint32(h[offCmdSN:]) }

// SetCmdSN sets the command sequence number of a request.
func (h *Header) SetCmdSN(n uint32) { be.PutUint32(h[offCmdSN:], n) }

// StatSN returns the status sequence number of a response.
func (h *Header) StatSN() uint32 { return be.Uint32(h[offCmdSN:]) }

// SetStatSN sets the status sequence number of a response.
func (h *Header) SetStatSN(n uint32) { be.PutUint32(h[offCmdSN:], n) }

// ExpStatSN returns what a request acknowledges: all StatSN below it.
func (h *Header) ExpStatSN() uint32 { return be.Uint32(h[offExpStatSN:]) }

// SetExpStatSN sets what a request acknowledges.
func (h *Header) SetExpStatSN(n uint32) { be.PutUint32(h[offExpStatSN:], n) }

// ExpCmdSN returns the next command number a target expects.
func (h *Header) ExpCmdSN() uint32 { return be.Uint32(h[offExpStatSN:]) }

// SetWindow sets ExpCmdSN and MaxCmdSN of a response.
func (h *Header) SetWindow(exp, max uint32) {
	be.PutUint32(h[offExpStatSN:], exp)
	be.PutUint32(h[offMaxCmdSN:], max)
}

// MaxCmdSN returns the last command number a target accepts.
func (h *Header) MaxCmdSN() uint32 { return be.Uint32(h[offMaxCmdSN:]) }

// CDB returns the command descriptor block of a SCSI Command.
func (h *Header) CDB() []byte { return h[offCDB : offCDB+16] }

// Attr returns the task attribute of a SCSI Command.
func (h *Header) Attr() byte { return h[offFlags] & attrMask }

// DataSN returns DataSN or R2TSN.
func (h *Header) DataSN() uint32 { return be.Uint32(h[offDataSN:]) }

// SetDataSN sets DataSN, R2TSN or ExpDataSN.
func (h *Header) SetDataSN(n uint32) { be.PutUint32(h[offDataSN:], n) }

// BufferOffset returns where a Data PDU's bytes lie in the command's transfer.
func (h *Header) BufferOffset() uint32 { return be.Uint32(h[offBufOffset:]) }

// SetBufferOffset sets where a Data PDU's bytes lie in the command's transfer.
func (h *Header) SetBufferOffset(n uint32) { be.PutUint32(h[offBufOffset:], n) }

// Residual returns the residual count, or the desired length of an R2T.
func (h *Header) Residual() uint32 { return be.Uint32(h[offResidual:]) }

// SetResidual sets the residual count, or the desired length of an R2T.
func (h *Header) SetResidual(n uint32) { be.PutUint32(h[offResidual:], n) }

// SetResponse sets the response and status bytes of a SCSI Response, Data-In,
// task management, Logout or Reject PDU.
func (h *Header) SetResponse(response, status byte) { h[2], h[3] = response, status }

// Response returns the response byte (the reason, of a Reject).
func (h *Header) Response() byte { return h[2] }

// Status returns the SCSI status of a SCSI Response or Data-In.
func (h *Header) Status() byte { return h[3] }

// ISID returns the initiator's part of the session id of a Login PDU.
func (h *Header) ISID() [6]byte { return [6]byte(h[offISID : offISID+6]) }

// SetISID sets the initiator's part of the session id.
func (h *Header) SetISID(i [6]byte) { copy(h[offISID:], i[:]) }

// TSIH returns the target's part of the session id of a Login PDU.
func (h *Header) TSIH() uint16 { return be.Uint16(h[offTSIH:]) }

// SetTSIH sets the target's part of the session id.
func (h *Header) SetTSIH(t uint16) { be.PutUint16(h[offTSIH:], t) }

// Versions returns the versions of a Login: maximum and minimum in a request,
// maximum and active in a response.
func (h *Header) Versions() (byte, byte) { return h[2], h[3] }

// Stages returns CSG and NSG of a Login PDU.
func (h *Header) Stages() (csg, nsg byte) { return h[offFlags] >> 2 & 3, h[offFlags] & 3 }

// LoginStatus returns class<<8|detail of a Login response.
func (h *Header) LoginStatus() uint16 { return be.Uint16(h[36:]) }

// SetLoginStatus sets class<<8|detail of a Login response.
func (h *Header) SetLoginStatus(s uint16) { be.PutUint16(h[36:], s) }

// SetAsync sets event and parameters of an Asynchronous Message.
func (h *Header) SetAsync(event byte, p1, p2, p3 uint16) {
	h[36] = event
	be.PutUint16(h[38:], p1)
	be.PutUint16(h[40:], p2)
	be.PutUint16(h[42:], p3)
}

// AsyncEvent returns the event of an Asynchronous Message.
func (h *Header) AsyncEvent() byte { return h[36] }

// SetLogoutTimes sets Time2Wait and Time2Retain, in seconds, of a Logout response.
func (h *Header) SetLogoutTimes(wait, retain uint16) {
	be.PutUint16(h[40:], wait)
	be.PutUint16(h[42:], retain)
}

// Padding returns how many zero bytes follow n bytes of data on the wire.
func Padding(n int) int { return -n & 3 }

// Before reports whether a precedes b in serial number arithmetic (RFC 1982),
// which every sequence number of iSCSI follows.
func Before(a, b uint32) bool { return int32(a-b) < 0 }

var opNames = map[Op]string{
	OpNopOut: "NOP-Out", OpCommand: "SCSI Command", OpTaskReq: "Task Management Request",
	OpLoginReq: "Login Request", OpTextReq: "Text Request", OpDataOut: "Data-Out",
	OpLogoutReq: "Logout Request", OpSNACK: "SNACK", OpNopIn: "NOP-In", OpResponse: "SCSI Response",
	OpTaskResp: "Task Management Response", OpLoginResp: "Login Response", OpTextResp: "Text Response",
	OpDataIn: "Data-In", OpLogoutResp: "Logout Response", OpR2T: "R2T", OpAsync: "Async Message",
	OpReject: "Reject",
}

// String returns the name RFC 7143 gives the PDU.
func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("opcode %#02x", byte(o))
}
