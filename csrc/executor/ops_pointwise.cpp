// ew.program: a chain of pointwise functions over tiles that stay in the L1 cache.
//
//   for each piece of kTile elements of a line (the last dim):  load the inputs, run the statements in order,
//   store the outputs
//
// A register is an array of kTile f32 or i32 values (bool: 0/1). Types follow the operands as in the IR: comparisons
// and logic give bool, `div` and the transcendental functions f32, everything else the type of its operands (i32 mixed
// with f32 becomes f32).
#include <algorithm>

#include "executor/ops.h"
#include "kernels/pointwise/pointwise.h"

namespace fmo {
namespace {

constexpr int64_t kTile = 256;  // elements: a register is 1 KiB
constexpr size_t kMaxStatements = 4096;

union Lane {
  float f;
  int32_t i;
};

// Inputs, then constants, then statement results: every operand is the number of one of these.
struct Register {
  bool is_float = true;
  Lane constant{};
};

struct Statement {
  int arity = 0;
  int operands[3] = {};
  int result = 0;
  bool in_float = true;  // the functions below with _f32 are used
  bool out_float = true;
  UnaryF32 unary_f32 = nullptr;
  BinaryF32 binary_f32 = nullptr;
  CompareF32 compare_f32 = nullptr;
  UnaryI32 unary_i32 = nullptr;
  BinaryI32 binary_i32 = nullptr;
};

struct Program {
  std::vector<const Tensor*> inputs, outputs;
  std::vector<Register> registers;  // [inputs | constants | results], conversions appended as results
  std::vector<Statement> statements;
  std::vector<int> output_registers;
  size_t num_constants_end = 0;
};

Lane* lanes(char* scratch, int reg) { return reinterpret_cast<Lane*>(scratch) + static_cast<int64_t>(reg) * kTile; }
float* floats(char* scratch, int reg) { return &lanes(scratch, reg)->f; }
int32_t* ints(char* scratch, int reg) { return &lanes(scratch, reg)->i; }

void load(const Tensor& x, int64_t offset, int64_t count, Lane* out) {
  const int64_t step = x.rank == 0 ? 0 : x.stride(x.rank - 1);
  if (x.dtype == DType::boolean) {
    const uint8_t* from = x.as<const uint8_t>() + offset;
    for (int64_t i = 0; i < count; ++i) out[i].i = from[i * step] != 0 ? 1 : 0;
    return;
  }
  const Lane* from = x.as<const Lane>() + offset;
  if (step == 1) {
    std::copy_n(from, count, out);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = from[i * step];
  }
}

int32_t to_i32(float value) {
  if (!(value > -2147483648.0f)) return value != value ? 0 : INT32_MIN;
  return value >= 2147483648.0f ? INT32_MAX : static_cast<int32_t>(value);
}

void store(const Lane* from, bool is_float, const Tensor& y, int64_t offset, int64_t count) {
  const int64_t step = y.rank == 0 ? 0 : y.stride(y.rank - 1);
  if (y.dtype == DType::boolean) {
    uint8_t* to = y.as<uint8_t>() + offset;
    for (int64_t i = 0; i < count; ++i) to[i * step] = is_float ? from[i].f != 0.0f : from[i].i != 0;
    return;
  }
  Lane* to = y.as<Lane>() + offset;
  if (is_float == (y.dtype == DType::f32)) {
    for (int64_t i = 0; i < count; ++i) to[i * step] = from[i];
  } else if (is_float) {
    for (int64_t i = 0; i < count; ++i) to[i * step].i = to_i32(from[i].f);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * step].f = static_cast<float>(from[i].i);
  }
}

void run_statement(const Statement& s, char* scratch, int64_t count) {
  const auto [a, b, c] = s.operands;
  if (s.arity == 3) {
    const int32_t* condition = ints(scratch, a);
    const Lane *yes = lanes(scratch, b), *no = lanes(scratch, c);
    Lane* out = lanes(scratch, s.result);
    for (int64_t i = 0; i < count; ++i) out[i] = condition[i] != 0 ? yes[i] : no[i];
  } else if (s.unary_f32 != nullptr) {
    s.unary_f32(floats(scratch, a), floats(scratch, s.result), count);
  } else if (s.binary_f32 != nullptr) {
    s.binary_f32(floats(scratch, a), floats(scratch, b), floats(scratch, s.result), count);
  } else if (s.compare_f32 != nullptr) {
    s.compare_f32(floats(scratch, a), floats(scratch, b), ints(scratch, s.result), count);
  } else if (s.unary_i32 != nullptr) {
    s.unary_i32(ints(scratch, a), ints(scratch, s.result), count);
  } else if (s.binary_i32 != nullptr) {
    s.binary_i32(ints(scratch, a), ints(scratch, b), ints(scratch, s.result), count);
  } else if (s.in_float) {  // conversion f32 → bool: a truth value for logic and `where`
    for (int64_t i = 0; i < count; ++i) ints(scratch, s.result)[i] = floats(scratch, a)[i] != 0.0f ? 1 : 0;
  } else {  // conversion i32 → f32
    for (int64_t i = 0; i < count; ++i) floats(scratch, s.result)[i] = static_cast<float>(ints(scratch, a)[i]);
  }
}

void run_program(const Program& program, const Step& step, int thread) {
  char* scratch = step.thread_workspace(thread);
  for (size_t reg = program.inputs.size(); reg < program.num_constants_end; ++reg) {
    std::fill_n(lanes(scratch, static_cast<int>(reg)), kTile, program.registers[reg].constant);
  }
  const Tensor& shape = *program.outputs[0];
  const int last = std::max(shape.rank - 1, 0);
  const int64_t width = shape.rank == 0 ? 1 : shape.dim(last), pieces = ceil_div(width, kTile);
  const Range mine = split(shape.count(0, last) * pieces, thread, step.num_threads);
  for (int64_t piece = mine.begin; piece < mine.end; ++piece) {
    const int64_t line = piece / pieces, begin = piece % pieces * kTile, count = std::min(kTile, width - begin);
    const auto start = [&](const Tensor& x) {
      return x.rank == 0 ? 0 : x.offset(line, 0, last) + begin * x.stride(last);
    };
    for (size_t i = 0; i < program.inputs.size(); ++i) {
      load(*program.inputs[i], start(*program.inputs[i]), count, lanes(scratch, static_cast<int>(i)));
    }
    for (const Statement& statement : program.statements) run_statement(statement, scratch, count);
    for (size_t i = 0; i < program.outputs.size(); ++i) {
      const int reg = program.output_registers[i];
      store(lanes(scratch, reg), program.registers[static_cast<size_t>(reg)].is_float, *program.outputs[i],
            start(*program.outputs[i]), count);
    }
  }
}

// Builds the program statement by statement.
class ProgramBuilder {
 public:
  explicit ProgramBuilder(Binder& binder) : binder_(binder), kernels_(pointwise_kernels(binder.isa())) {
    const CallSpec& call = binder.call();
    for (size_t i = 0; i < call.inputs.size(); ++i) add_input(binder.input_any(i));
    for (const EwStatement& statement : call.code) {
      for (const EwOperand& operand : statement.operands) {
        if (operand.kind == EwOperand::Kind::constant) add_constant(operand);
      }
    }
    program_.num_constants_end = program_.registers.size();
    for (const EwStatement& statement : call.code) add_statement(statement);
    for (size_t i = 0; i < call.outputs.size(); ++i) {
      program_.outputs.push_back(binder.output_any(i));
      program_.output_registers.push_back(results_[results_.size() - call.outputs.size() + i]);
    }
  }

  const Program& program() const { return program_; }

 private:
  void add_input(const Tensor* x) {
    program_.inputs.push_back(x);
    program_.registers.push_back({x->dtype == DType::f32, {}});
  }

  void add_constant(const EwOperand& operand) {
    Register reg{operand.dtype == DType::f32, {}};
    if (reg.is_float) {
      reg.constant.f = static_cast<float>(operand.constant);
    } else {
      reg.constant.i = to_i32(static_cast<float>(operand.constant));
      if (operand.constant >= -2147483648.0 && operand.constant <= 2147483647.0)
        reg.constant.i = static_cast<int32_t>(operand.constant);
    }
    program_.registers.push_back(reg);
  }

  int register_of(const EwOperand& operand) {
    if (operand.kind == EwOperand::Kind::constant)
      return static_cast<int>(program_.inputs.size()) + num_constants_used_++;
    const bool is_input = operand.kind == EwOperand::Kind::input;
    const size_t limit = is_input ? program_.inputs.size() : results_.size(),
                 index = static_cast<size_t>(operand.index);
    binder_.require(operand.index >= 0 && index < limit,
                    "the code reads " + std::string(is_input ? "input " : "register ") + std::to_string(operand.index) +
                        " of " + std::to_string(limit));
    return is_input ? static_cast<int>(index) : results_[index];
  }

  bool is_float(int reg) const { return program_.registers[static_cast<size_t>(reg)].is_float; }

  int new_register(bool is_float_register) {
    program_.registers.push_back({is_float_register, {}});
    return static_cast<int>(program_.registers.size()) - 1;
  }

  // i32 → f32, or f32 → truth value.
  int converted(int reg, bool to_float) {
    if (is_float(reg) == to_float) return reg;
    Statement s;
    s.arity = 1;
    s.operands[0] = reg;
    s.in_float = !to_float;
    s.out_float = to_float;
    s.result = new_register(to_float);
    program_.statements.push_back(s);
    return s.result;
  }

  void add_statement(const EwStatement& statement) {
    const int arity = pointwise_arity(statement.fn);
    binder_.require(arity != 0, "unknown function '" + statement.fn + "'");
    binder_.require(static_cast<size_t>(arity) == statement.operands.size(),
                    "'" + statement.fn + "' takes " + std::to_string(arity) + " operands, not " +
                        std::to_string(statement.operands.size()));
    Statement s;
    s.arity = arity;
    for (int i = 0; i < arity; ++i) s.operands[i] = register_of(statement.operands[static_cast<size_t>(i)]);
    choose_function(statement.fn, s);
    s.result = new_register(s.out_float);
    program_.statements.push_back(s);
    results_.push_back(s.result);
  }

  void convert_operands(Statement& s, int first, bool to_float) {
    for (int i = first; i < s.arity; ++i) s.operands[i] = converted(s.operands[i], to_float);
  }

  void choose_function(const std::string& fn, Statement& s) {
    bool any_float = false;
    for (int i = s.arity == 3 ? 1 : 0; i < s.arity; ++i) any_float = any_float || is_float(s.operands[i]);
    if (s.arity == 3) {
      s.operands[0] = converted(s.operands[0], false);
      convert_operands(s, 1, any_float);
      s.in_float = s.out_float = any_float;
      return;
    }
    const bool is_logic = fn == "and" || fn == "or" || fn == "not";
    if (!is_logic && (any_float || !has_i32_form(fn, s.arity))) {
      convert_operands(s, 0, true);
      s.unary_f32 = s.arity == 1 ? kernels_.unary_f32(fn) : nullptr;
      s.binary_f32 = s.arity == 2 ? kernels_.binary_f32(fn) : nullptr;
      s.compare_f32 = s.arity == 2 ? kernels_.compare_f32(fn) : nullptr;
      s.out_float = s.compare_f32 == nullptr;
      return;
    }
    convert_operands(s, 0, false);
    s.in_float = s.out_float = false;
    s.unary_i32 = s.arity == 1 ? kernels_.unary_i32(fn) : nullptr;
    s.binary_i32 = s.arity == 2 ? kernels_.binary_i32(fn) : nullptr;
  }

  bool has_i32_form(const std::string& fn, int arity) const {
    return arity == 1 ? kernels_.unary_i32(fn) != nullptr : kernels_.binary_i32(fn) != nullptr;
  }

  Binder& binder_;
  const PointwiseKernels kernels_;
  Program program_;
  std::vector<int> results_;  // the register of each statement
  int num_constants_used_ = 0;
};

}  // namespace

BoundOp bind_pointwise_program(Binder& binder) {
  const CallSpec& call = binder.call();
  binder.expect_operands(0, SIZE_MAX, std::max<size_t>(call.outputs.size(), 1));
  const size_t num_statements = call.code.size();
  binder.require(num_statements >= call.outputs.size() && num_statements <= kMaxStatements,
                 "the code has " + std::to_string(num_statements) + " statements for " +
                     std::to_string(call.outputs.size()) + " outputs");
  const Program program = ProgramBuilder(binder).program();
  for (const Tensor* x : program.inputs) binder.require_same_dims(*x, *program.outputs[0], "an input and the output");
  for (const Tensor* y : program.outputs) binder.require_same_dims(*y, *program.outputs[0], "the outputs");
  binder.need_workspace(0, checked_mul(static_cast<int64_t>(program.registers.size()), kTile * 4));
  return {std::string("pointwise.cpu.") + isa_name(binder.isa()),
          [=](const Step& step, int thread) { run_program(program, step, thread); }};
}

}  // namespace fmo
